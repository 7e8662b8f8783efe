"""Raw files to typed tables: fetching, reading, checking, splitting by time, and the synthetic world."""
