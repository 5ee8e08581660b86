"""What trains one run on the ranks of a world."""
