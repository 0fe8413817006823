"""Settings for RQ's own commands: `RQ_CONFIG=vlac_queue.rq_settings rq worker vlac --with-scheduler`.

RQ knows RQ_REDIS_URL only, and a password in it. With this module it connects as everything else here does:
VLAC_REDIS_URL, and the user and password that the environment or a file gives. RQ_REDIS_URL must not be set: it
wins over this.
"""

from vlac_queue.config import VlacConfig

REDIS_URL = VlacConfig.from_env().redis_url
