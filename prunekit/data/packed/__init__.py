"""What a token file is made of: the order of its windows, how they are read and how they are written."""
