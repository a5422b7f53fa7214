// Follow the cases of tests/conformance with the package eventsource. One JSON value on stdin, the
// arguments of `follow`, and one on stdout.
import {text} from 'node:stream/consumers'
import {EventSource} from 'eventsource'
import {follow} from '../conformance/follow.mjs'

const {cases, patience} = JSON.parse(await text(process.stdin))
process.stdout.write(JSON.stringify(await follow(EventSource, cases, patience)))
