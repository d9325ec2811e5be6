"""Every use of private API of Ray and vLLM, with the upstream code and the version it relies on."""
