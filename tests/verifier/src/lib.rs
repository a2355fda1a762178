//! Every eBPF program loads on this kernel, within its committed budget of instructions. See `tests/`.
