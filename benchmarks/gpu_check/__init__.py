"""Are the kernels right on this GPU, and how fast are they?"""
