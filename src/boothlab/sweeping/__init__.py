"""Many runs as one: what is done, what is to do, how long it takes, and that nothing finished is lost or repeated."""
