"""The command line. Each file holds the commands of one noun; what is heavy is imported inside a command."""
