"""Training under kills, hangs and full disks at every moment, compared with an undisturbed one."""
