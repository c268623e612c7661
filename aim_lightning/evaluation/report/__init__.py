"""Tables and plots of recorded scores."""
