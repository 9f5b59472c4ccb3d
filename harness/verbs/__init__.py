"""What the command line's verbs need beside the machine itself: options, progress, tables."""
