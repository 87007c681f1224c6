"""The watchdog of the cards: sees heat, errors of the driver and hung engines, and acts on a ladder of steps."""
