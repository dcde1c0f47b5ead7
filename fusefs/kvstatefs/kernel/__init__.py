"""The kernel's FUSE protocol, spoken by us: a mount that its processes may come and go under."""
