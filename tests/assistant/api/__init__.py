"""Tests of the assistant's endpoints, over a real socket."""
