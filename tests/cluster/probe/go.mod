module rerail.dev/rig/probe

go 1.26.0
