"""The Cluster port on a real API server: one aiohttp session, typed streams, errors mapped in one place."""
