"""What is measured of a window of requests, and how it is compared with the reference."""
