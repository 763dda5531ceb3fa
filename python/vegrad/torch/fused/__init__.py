"""Modules of PyTorch run by the core's fused passes: nn.Sequential, LSTM, GRU and RNN."""
