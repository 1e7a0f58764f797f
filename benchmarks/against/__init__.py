"""What benchmarks/peers.py and its relatives share: model folders, whole commands measured, one loss for all."""
