"""Load on order-service: Create calls and cancels at a rate, and the figures of what their clients were told."""
