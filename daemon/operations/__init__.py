"""What an operator's machine wants of a service: doctor, health, metrics, watchdog, reload, a bundle for support."""
