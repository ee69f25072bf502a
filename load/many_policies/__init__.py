"""Many policies on few engines: the rows that are raced, and what they have to show."""
