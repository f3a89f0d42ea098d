"""What a rented machine does at its first boot, before anybody can log in: arm its own end, then show the right key."""

from __future__ import annotations

from dtrain.cloud.keys import RunKeys

HIDDEN_KEY = "HOST_KEY: made at launch, the only secret in here"
SCRIPT = """\
#!/bin/sh
# dtrain, run {run_id}: this machine ends by itself, whoever lives or does not.
# `sleep` counts time that passes, so a clock that is set does not move the end.
setsid sh -c 'sleep {seconds}; shutdown -h now || poweroff -f || kill -TERM 1' >/dev/null 2>&1 </dev/null &
umask 077
mkdir -p /root/.ssh /etc/ssh/sshd_config.d
echo '{public_key}' >> /root/.ssh/authorized_keys
cat > /etc/ssh/sshd_config.d/00-dtrain.conf <<'DTRAIN'
PermitRootLogin prohibit-password
PasswordAuthentication no
HostKey /etc/ssh/dtrain_host_key
DTRAIN
cat > /etc/ssh/dtrain_host_key <<'DTRAIN'
{host_key}
DTRAIN
mkdir -p /run/sshd
for restart in 'systemctl restart ssh' 'systemctl restart sshd' 'service ssh restart' /usr/sbin/sshd; do
  $restart 2>/dev/null && break
done
python3 -c 'import venv, ensurepip' 2>/dev/null || (apt-get update && apt-get install -y python3-venv) >/dev/null 2>&1
"""


def user_data(run_id: str, max_seconds: float, keys: RunKeys | None) -> str:
    """The script as a provider is given it; without keys as a dry run shows it."""
    host_key = keys.host_private.strip() if keys else HIDDEN_KEY
    public = keys.login_public if keys else "PUBLIC_KEY"
    return SCRIPT.format(run_id=run_id, seconds=round(max_seconds), public_key=public, host_key=host_key)
