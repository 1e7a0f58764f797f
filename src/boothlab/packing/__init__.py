"""Many LoRA runs in one model: the jobs of a sweep share a frozen backbone and compute together what they ask of it."""
