// Package e2e tests whole daemons against real peers: the tacit binary on hosts of a lab, zones signed by BIND's and
// ldns's tools and served by NSD, unbound as a forwarder, strongSwan. Its tests need root, Linux and Debian's packages
// nsd, unbound, bind9-utils, ldnsutils, charon-systemd, strongswan-swanctl and libcharon-extra-plugins; they run when
// TACIT_E2E=1 is set.
package e2e
