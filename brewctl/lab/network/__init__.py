"""A faulty network: TCP proxies that delay, throttle, swallow, reset or cut off connections."""
