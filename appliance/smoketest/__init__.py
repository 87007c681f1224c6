"""The smoke test of a running host: engines, doctor, gateway, a short load; its report decides a trial boot."""
