"""A double of NVIDIA Apex for machines without it: constructors as documented, kernels called in Apex's order."""
