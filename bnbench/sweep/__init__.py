"""Many runs: what to run, and the worlds that run it."""
