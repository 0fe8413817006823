-- Reads the frames of a reference.
-- KEYS: reference
-- ARGV: most_bytes
-- Reply: {batch ...} or their bytes.

-- include batches
return (batches(KEYS[1], 0, -1, tonumber(ARGV[1])))
