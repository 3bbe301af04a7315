"""A faulty network: TCP proxies that delay, narrow, swallow, reset or cut what goes through them."""
