"""What a request costs the gateway's process, beside engines that cost nothing."""
