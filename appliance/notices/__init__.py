"""Notices: messages for the operator, in one outbox on disk until they are sent."""
