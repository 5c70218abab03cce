"""PyTorch's own formats: torch.export, TorchScript, ExecuTorch."""
