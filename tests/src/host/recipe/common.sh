# What every image of Debian's packages has in common. Each host gets host keys of its own.
rm -f /etc/ssh/ssh_host_*
rm -f /etc/machine-id /var/lib/dbus/machine-id
mkdir -p /root/.ssh
chmod 700 /root /root/.ssh
