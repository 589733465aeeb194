"""The pump of one worker: settle outcomes, claim items, feed the slots that run handlers."""
