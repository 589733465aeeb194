"""The pump of one worker: settle outcomes, claim items, and feed the slots that run handlers."""
