"""Load order-service with Create calls and cancels, and measure the outcomes and latencies."""
