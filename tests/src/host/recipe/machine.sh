# A machine of its own kernel: its network, and what makes one machine of the image, which is on its second disk.
cat > /etc/systemd/network/machine.network <<'NETWORK'
[Match]
Type=ether

[Network]
DHCP=no
IPv6AcceptRA=no
LinkLocalAddressing=no
Address=10.0.2.15/24
Gateway=10.0.2.2
NETWORK
cat > /etc/systemd/system/seed.service <<'UNIT'
[Unit]
Description=Files of this one machine
Before=ssh.service

[Service]
Type=oneshot
ExecStart=tar -xf /dev/vdb -C /

[Install]
RequiredBy=ssh.service
UNIT
systemctl enable -q systemd-networkd.service seed.service
# What only takes time under an emulated processor.
systemctl mask -q systemd-networkd-wait-online.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service
: > /etc/fstab
echo machine > /etc/hostname
echo '127.0.0.1 localhost machine' > /etc/hosts
: > /etc/machine-id
