"""What helps to decide: sizes compared before one is made, and one page of all that was measured."""
