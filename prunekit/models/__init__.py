"""Reading, describing, taking apart and running a decoder."""
