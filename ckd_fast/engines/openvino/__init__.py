"""The fast path on CPUs: `graph` builds the network from OpenVINO's operations, `engine` is what trackers use."""
