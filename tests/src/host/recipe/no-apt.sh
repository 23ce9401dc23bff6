# Takes the place of Debian's package manager away, so that the other one is the host's only one. What dpkg knows of its
# packages stays, but nothing can ask it.
rm -f /usr/bin/apt /usr/bin/apt-* /usr/bin/dpkg /usr/bin/dpkg-* /usr/sbin/dpkg-*
rm -rf /var/lib/apt/lists /etc/apt/sources.list /etc/apt/sources.list.d
printf 'ID=th\nVERSION_ID=41\nPRETTY_NAME="Test host"\n' > /etc/os-release
