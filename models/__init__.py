from models import telemetry as telemetry  # before any library that would report home
