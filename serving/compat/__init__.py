"""Every use of private API of Ray and vLLM, with the upstream version it relies on."""
