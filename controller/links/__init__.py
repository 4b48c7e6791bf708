"""Carriers of the agent's protocol: each moves frames, none knows what they mean."""
