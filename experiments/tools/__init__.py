"""What prepares and looks after runs: craft, plan, store."""
