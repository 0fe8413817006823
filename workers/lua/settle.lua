-- For other scripts: what a worker was waiting for goes to a list of its own first, and from there to its claims
-- (KEYS[2]): so the script that takes can stand right behind the command that waits, on the same connection.

while redis.call('LMOVE', KEYS[2] .. ':next', KEYS[2], 'LEFT', 'RIGHT') do end
