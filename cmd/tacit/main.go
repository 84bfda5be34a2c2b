// Command tacit makes this host encrypt to others without being asked, and is the user's view of the daemon that does so.
package main

import "os"

func main() {
	maybeLabChild()
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
