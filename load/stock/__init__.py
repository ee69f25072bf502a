"""The peers: stock vLLM servers that load adapters on demand, and the routers that people put in front of them."""
