"""What is kept when something breaks in the middle: each test says which fault, and what must be there afterwards."""
