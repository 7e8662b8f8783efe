"""What is known of a user, and how an event gets into the table."""
