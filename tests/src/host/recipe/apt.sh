# A flat repository of small packages in /srv/repo, and apt told of it alone: hosts have no way to any mirror.
work=$(mktemp -d)
mkdir -p /srv/repo

package() { # NAME VERSION [DEPENDS]
    dir=$work/$1-$2
    mkdir -p "$dir/DEBIAN" "$dir/usr/share/$1"
    echo "$1 $2" > "$dir/usr/share/$1/version"
    {
        echo "Package: $1"
        echo "Version: $2"
        echo "Architecture: all"
        echo "Maintainer: Test Kit <root@localhost>"
        [ -z "${3:-}" ] || echo "Depends: $3"
        echo "Description: test package $1"
    } > "$dir/DEBIAN/control"
}

build() { # NAME VERSION
    dpkg-deb --root-owner-group --build "$work/$1-$2" "/srv/repo/$1_$2_all.deb" > /dev/null
}

package th-lib 1.0
build th-lib 1.0
for version in 1.0 1.1; do
    package th-hello $version th-lib
    build th-hello $version
done

# A service with a configuration file, which notes each of its starts and reloads.
package th-svc 1.0
dir=$work/th-svc-1.0
mkdir -p "$dir/etc/th-svc" "$dir/lib/systemd/system"
echo level=1 > "$dir/etc/th-svc/conf"
echo /etc/th-svc/conf > "$dir/DEBIAN/conffiles"
cat > "$dir/lib/systemd/system/th-svc.service" <<'UNIT'
[Unit]
Description=Service of the test package th-svc

[Service]
ExecStart=/bin/sh -c "cat /etc/th-svc/conf >> /run/th-svc.starts; exec sleep infinity"
ExecReload=/bin/sh -c "echo reload >> /run/th-svc.starts"

[Install]
WantedBy=multi-user.target
UNIT
cat > "$dir/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable --quiet --now th-svc
fi
SCRIPT
cat > "$dir/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --quiet --now th-svc
fi
SCRIPT
chmod 755 "$dir/DEBIAN/postinst" "$dir/DEBIAN/prerm"
build th-svc 1.0

(
    cd /srv/repo
    for file in *.deb; do
        dpkg-deb --field "$file"
        echo "Filename: ./$file"
        echo "Size: $(stat -c %s "$file")"
        echo "SHA256: $(sha256sum "$file" | cut -c1-64)"
        echo
    done > Packages
)
rm -rf "$work"
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
rm -rf /var/lib/apt/lists/*
echo 'deb [trusted=yes] file:/srv/repo ./' > /etc/apt/sources.list
apt-get -q update > /dev/null
